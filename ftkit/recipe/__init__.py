"""The recipe: one YAML file, read strictly, checked as a whole, and made into the frozen sections that work."""
