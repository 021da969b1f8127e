"""The stages of a pretraining run: tokens and windows, training, evaluation, and the merge."""
