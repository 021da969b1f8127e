"""Base models and what is put on them."""
