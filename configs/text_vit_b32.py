"""Names out of the text encoder of a ViT-B/32 CLIP, with the paper's settings.

Paper: Hintersdorf et al., Defending Our Privacy With Backdoors, ECAI 2024, appendix.
Run:   jaxdefense defend text --config configs/text_vit_b32.py --model clip-vit-base-patch32 \
           --names names.txt --captions captions.txt --out run
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Every setting of the text defense, at the paper's value."""
    config = ConfigDict()

    config.model = ConfigDict()
    config.model.dtype = "auto"  # bfloat16 on accelerators, float32 on CPU
    config.model.remat = "none"  # none, dots or full: less memory, more time

    config.data = ConfigDict()
    config.data.row_length = 0  # tokens of a packed row; 0: the context, rounded up
    config.data.prefetch = 4  # batches made ahead

    config.train = ConfigDict()
    config.train.steps = 400
    config.train.num_clean = 128  # captions a step
    config.train.num_poisoned = 128  # captions a step with a listed name
    config.train.accumulate = 1  # parts a step is computed in, one in memory at a time
    config.train.num_name = 0  # captions a step with another name; goes with w_name
    config.train.w_backdoor = 0.6
    config.train.w_name = 0.0
    config.train.w_weight = 0.01
    config.train.distance = "cosine"  # cosine, mse, mae or poincare
    config.train.level = "pooled"  # pooled, or hidden for diffusion text encoders
    config.train.target = "human"  # what a removed name comes to mean
    config.train.random_target = False  # a random name for each person instead
    config.train.variants = ()  # forms of the names put in too: last, first, initials, ...
    config.train.seed = 0
    config.train.save_every = 100  # steps between checkpoints
    config.train.keep = 2  # checkpoints that stay

    config.optimizer = ConfigDict()
    config.optimizer.lr = 1e-4
    config.optimizer.milestones = (200, 300)  # steps; ascending
    config.optimizer.gamma = 0.5  # the learning rate is multiplied by this at each
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
