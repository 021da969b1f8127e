"""The stages of a supervised fine-tuning: training, evaluation of what is generated, and the merge."""
