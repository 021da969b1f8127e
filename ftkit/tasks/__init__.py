"""How a row becomes tokens and a loss, which trainer takes it, and how it is scored."""
