"""Whether a store is true: a random sample of its rows is made again and compared."""

from pipeline.audit.auditor import IMPORTED, audit, audit_imported
from pipeline.audit.findings import CHECKS, Audit, Finding, Result

__all__ = ["CHECKS", "IMPORTED", "Audit", "Finding", "Result", "audit", "audit_imported"]
