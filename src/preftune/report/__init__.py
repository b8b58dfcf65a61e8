"""A record as one HTML file that opens offline."""

from preftune.report.page import page  # after the import of the module of that name: the function is what stays

__all__ = ["page"]
