"""The contract: what a store of targets is. NumPy, pyarrow and fsspec only; no Ray, no torch at import."""
