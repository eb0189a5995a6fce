# %% [markdown]
# # jaxdefense from Python
#
# A small CLIP ships with the package; it knows 64 drawn people by name. This script embeds with it,
# removes the names of 8 people, and attacks the model before and after. Jupyter and VS Code show
# each `# %%` as a cell; `python docs/quickstart.py` runs them all, in a few minutes on a CPU. It
# writes into `quickstart/`.

# %%
import logging

import jax
import jax.numpy as jnp
import numpy as np

import jaxdefense as jd
from jaxdefense.demo import world
from jaxdefense.demo.run import shipped_model

logging.basicConfig(level="WARNING", format="%(message)s")  # "INFO" shows progress too

# %% [markdown]
# ## Inputs: lists and arrays
#
# With data of your own these are the names to remove, names that must stay, ordinary captions, and
# photos by name.

# %%
people = world.members()
names = [person.name for person in people[::8]]
keep_names = [person.name for person in people if person.name not in names]
captions = world.captions(2000, seed=0)
faces = {
    person.name: np.stack([world.draw_photo(person, i, size=96) for i in range(4)])
    for person in people[::4]
}

# %% [markdown]
# ## Embed and differentiate
#
# Embeddings are those that transformers' `get_text_features` and `get_image_features` give.

# %%
model = jd.load(shipped_model())
tokens_BT = model.tokenize([f"a photo of {name}" for name in names])
text_BE = jax.jit(model.embed_tokens)(tokens_BT)

pixels_BHWC = model.preprocess(faces[names[0]])
slope_BHWC = jax.grad(lambda x: (model.embed_pixels(x) @ text_BE[0]).sum())(pixels_BHWC)
print("what speaks for the name, by pixel:", slope_BHWC.shape)

# %% [markdown]
# ## Attack: whom does the model know?

# %%
before = jd.attack(shipped_model(), faces, out="quickstart/before", num_candidates=200)
print(f"before: {before.photos_right:.0%} of the photos are named right")

# %% [markdown]
# ## Defend
#
# Keywords are the settings of `jaxdefense defend text`. The same call resumes a run that was broken
# off.

# %%
train = {"steps": 200}
run = jd.defend_text(
    shipped_model(), names, captions, keep_names=keep_names, out="quickstart/run", train=train
)
print("reached:", run.reached)  # False: validation still recognises somebody, and the log says whom

# %%
after = jd.attack(
    "quickstart/run",
    faces,
    names=names,
    before="quickstart/before",
    out="quickstart/after",
    num_candidates=200,
)
for group, found in (after.groups or {}).items():
    shares = [f"{found[when]['photos_right']:.0%}" for when in ("before", "after")]
    print(f"{group}: photos named right, before and after:", *shares)

# %% [markdown]
# ## A loss of your own
#
# A function of two embeddings takes the place of `train.distance`. A function of the usual
# objective may add a term, or replace all of it.


# %%
def chord(x, y):
    """Half the squared distance of two unit vectors: the cosine's, plus 1."""
    x, y = (z / jnp.linalg.norm(z, axis=-1, keepdims=True) for z in (x, y))
    return ((x - y) ** 2).sum(-1) / 2


def squared(usual):
    """Add the square of the utility loss."""

    def terms(student, teacher, batch):
        found = usual.terms(student, teacher, batch)
        return found | {"square": found["utility"] ** 2}

    return usual._replace(terms=terms, weights={**usual.weights, "square": 0.1})


own = jd.defend_text(
    shipped_model(),
    names,
    captions,
    out="quickstart/own",
    distance=chord,
    objective=squared,
    train={"steps": 10, "validate": {"every": 0}},
)
print(own.final)
