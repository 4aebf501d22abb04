"""Work over many files: encoding and decoding."""
