"""From stored answers to scores: a registry of metrics, and pure functions from answers to one long frame."""
