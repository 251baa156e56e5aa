"""What happens while a model trains, or runs over a dataset."""
