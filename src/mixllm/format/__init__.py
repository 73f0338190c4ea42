"""The checkpoint format that docs/format.md specifies: packing, writing, reading, validating."""
