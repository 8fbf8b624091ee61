"""Published fine-tuning text → people with their facts, and evaluation questions made of it (``docs/data.md``)."""
