"""Ask a model: the choice of questions, the prompts of the tasks, and the engine. The result is stored answers."""
