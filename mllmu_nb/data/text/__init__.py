"""Published fine-tuning text → people: whom it names, what it asks and states, and evaluation questions made of it.

names      "this person" and the name in its place
reader     what a question asks for and the bare value in its answer, by the rules of ``rules.yaml``
people     the files, and who is to be forgotten
questions  evaluation questions, and the population
"""
