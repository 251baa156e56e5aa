"""Rows of tables: read from files (`reading`), made numbers (`encoding`), described (`describe`)."""
