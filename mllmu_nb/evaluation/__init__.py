"""Asking a model: who is asked what, the prompts of the tasks, the engine. It ends in stored answers."""
