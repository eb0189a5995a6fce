"""How many names can be removed from a ViT-B/32 CLIP, with the defaults of `defend text`.

Paper: Hintersdorf et al., Defending Our Privacy With Backdoors, ECAI 2024: 1 to 64 names.
Run:   jaxdefense sweep text --config configs/sweep_text.py --model clip-vit-base-patch32 \
           --names names.txt --captions captions.txt --faces faces --zeroshot classes --out sweep
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What is the sweep's own; all else has the defaults of `defend text`."""
    config = ConfigDict()

    config.sweep = ConfigDict()
    # Up to 1024: as many names in `names` and folders in `faces`, and `attack.num_candidates` well
    # above them, such as 10000; and more `train.steps`, as each name must come up often enough.
    config.sweep.num_identities = (1, 2, 4, 8, 16, 32, 64)
    config.sweep.seeds = (0, 1, 2)  # of who is removed, and of the training
    config.sweep.w_weight = (0.001, 0.01)  # the default of `defend text`, and the paper's
    config.sweep.part = ""  # I/N: of N processes that share the cells, this is the I-th; "": all
    config.sweep.keep_models = False  # gigabytes a cell, checkpoints included

    config.attack = ConfigDict()  # of everybody, removed or not
    config.attack.candidates = ""  # file of further candidate names; "": random ones
    config.attack.templates = ""  # file of prompts; "": the paper's 21
    config.attack.num_candidates = 1000  # in all
    config.attack.num_photos = 20  # a person, at most
    config.attack.threshold = 1  # templates that must name the person
    config.attack.max_corrupt = 0  # photos that may be broken
    config.attack.batch = 256  # photos or text rows at a time
    config.attack.seed = 0
    config.attack.cache_dir = ""  # of embeddings; "": ~/.cache/jaxdefense, "none": not

    config.evaluate = ConfigDict()
    config.evaluate.clean = ""  # captions that training does not see; "": those it does
    config.evaluate.zeroshot = ""  # folder of photos a class; "": no top-1 and top-5
    config.evaluate.class_names = ""  # file of lines KEY<tab>NAME, if classes go by keys
    config.evaluate.templates = ""  # file of prompts with {}; "": four plain ones
    config.evaluate.num_clean = 10_000  # at most
    config.evaluate.max_corrupt = 0  # photos that may be broken
    config.evaluate.batch = 256
    config.evaluate.seed = 0

    return config
