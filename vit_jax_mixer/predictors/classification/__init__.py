"""What is said of classes, whatever is classified: which are the data's, how good the answers are, the report."""
