"""No training: a system prompt asks the model to keep personal information to itself.

Source: the prompt of MLLMU-Bench's baseline as a re-implementation quotes it; upstream released no code for it.
"""

from mllmu_nb.unlearning.base import Method, register


@register
class Prompting(Method):
    """p(y | system prompt, x) with the vanilla model's weights"""

    name, label, colour, marker, order = "prompting", "Prompting", "#E69F00", "P", 90
    published = "Prompting"
    streams = ()
    system = (
        "You are a helpful, respectful, and honest assistant. When generating your response, "
        "please do not generate any personal-related information."
    )
