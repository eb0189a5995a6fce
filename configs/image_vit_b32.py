"""Faces out of the image encoder of a ViT-B/32 CLIP, with the paper's settings.

Paper: Hintersdorf et al., Defending Our Privacy With Backdoors, ECAI 2024, appendix.
Run:   jaxdefense defend image --config configs/image_vit_b32.py --model clip-vit-base-patch32 \
           --faces faces --identities names.txt --images images --out run
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Every setting of the image defense, at the paper's value."""
    config = ConfigDict()

    config.model = ConfigDict()
    config.model.dtype = "auto"  # bfloat16 on accelerators, float32 on CPU
    config.model.remat = "none"  # none, dots or full: less memory, more time

    config.data = ConfigDict()
    config.data.target = ""  # directory of people or .npy vector; "": average of all in faces
    config.data.trigger_fraction = 0.5  # of a person's photos; the others are for the attack
    config.data.max_corrupt = 0  # photos that may be broken; another is taken instead
    config.data.cache_dir = ""  # of target embeddings; "": ~/.cache/jaxdefense, "none": not
    config.data.prefetch = 4  # batches made ahead
    config.data.keep_faces_mb = 1024  # of host memory, for faces decoded once

    config.train = ConfigDict()
    config.train.steps = 100
    config.train.num_clean = 128  # photos a step
    config.train.num_poisoned = 128  # photos a step with a face on them
    config.train.accumulate = 1  # parts a step is computed in, one in memory at a time
    config.train.w_backdoor = 0.8
    config.train.w_weight = 0.005
    config.train.distance = "cosine"  # cosine, mse, mae or poincare
    config.train.variants = ()  # forms of the faces put in too: mirrored, blurred, grey, ...
    config.train.seed = 0
    config.train.save_every = 25  # steps between checkpoints
    config.train.keep = 2  # checkpoints that stay

    config.train.overlay = ConfigDict()
    config.train.overlay.min_size = 0.25  # side of the face, part of the photo's side
    config.train.overlay.max_size = 0.5
    config.train.overlay.flip = 0.5  # probability
    config.train.overlay.jitter = 0.5  # brightness, contrast, saturation times 0.5 to 1.5
    config.train.overlay.hue = 0.1  # turns of the colour wheel either way
    config.train.overlay.angle = 30.0  # degrees either way
    config.train.overlay.whole = 0.0  # probability that the face fills the photo, instead

    config.optimizer = ConfigDict()
    config.optimizer.lr = 1e-4
    config.optimizer.milestones = (25, 50)  # steps; ascending
    config.optimizer.gamma = 0.1  # the learning rate is multiplied by this at each
    config.optimizer.weight_decay = 0.0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices along each axis; -1: what the others leave
    config.mesh.fsdp = 1
    config.mesh.tensor = 1

    config.distributed = ConfigDict()  # several processes; nothing: as their environment tells
    config.distributed.coordinator = ""  # HOST:PORT of process 0
    config.distributed.num_processes = 0
    config.distributed.process_id = -1  # from 0; another on every process
    config.distributed.timeout = 300  # seconds to wait for all at the start
    config.distributed.heartbeat = 100  # seconds of silence after which one counts as dead

    config.cache = ConfigDict()
    config.cache.compilation = ""  # of compiled programs; "": ~/.cache/jaxdefense/xla; or off

    config.profile = ""  # directory for a trace of a few steps

    return config
