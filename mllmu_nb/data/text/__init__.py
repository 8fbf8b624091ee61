"""Turn published fine-tuning text into people with facts, and into evaluation questions (``docs/data.md``)."""
