"""The salience of output channels, measured: candidates of each row, and what the loss suffers from each."""
