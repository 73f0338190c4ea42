"""The command line: what a person types and reads. It holds no logic of its own."""
