"""jaxdefense removes people's names and faces from CLIP models, at scale, on JAX.

Array names end in their dims. The legend, for the whole package:

    B examples (texts or images)      R packed text rows       I identities (people)
    H W C image height, width, colour S slots of a packed row  J photos a person
    T tokens of either tower          E shared embedding       Q prompt templates
    D tower width, F MLP width        V vocabulary             M candidate names
    N heads, K head width             L layers of a tower

Words: an `Identity` is a person by their names; `Photos` are the photos of one person or class. The
listed people are those to remove. Members are the people whose photos an attack is given.

Reading order: `clip/text.py` (the encoder and its packed input), `data/triggers.py` and
`data/overlay.py` (what is put into captions and photos), `defense/step.py` (the method),
`defense/loop.py` (the run), `idia/attack.py` (the proof).
"""

__version__ = "0.1.0"
