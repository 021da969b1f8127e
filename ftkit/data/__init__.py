"""Rows: where they come from, what is wrong with them, and which side of the split they stand on."""
