"""The paper's tables in miniature, trained and measured on a rendered corpus: `make reproduce`."""
