"""The demo's report: one HTML file that needs nothing else. `jobs.report.page.write_report` makes it.

`parts`, `words` and `style.css` are the look of every page that Decant writes; they need no drawing library.
"""
