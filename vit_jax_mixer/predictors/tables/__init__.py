"""What is said of rows: how good answers are, the report and its pictures."""
