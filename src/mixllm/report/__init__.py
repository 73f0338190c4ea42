"""What a checkpoint is worth, on one page: figures gathered, drawn and written as a self-contained file."""
