"""ftkit: parameter-efficient fine-tuning that is measured before it is merged."""

__version__ = "0.1.0"
