"""Which fields of a library's config are read, which must have one value, which change nothing.

Any other field is unknown: the tests compare the tables with the libraries' own classes.

Source: open_clip 3.3.0 `model.py` (CLIPVisionCfg, CLIPTextCfg, CLIP); transformers 5.24
`models/clip/configuration_clip.py`, `models/siglip/configuration_siglip.py`.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from jaxdefense.errors import InputError


@dataclasses.dataclass(frozen=True)
class Fields:
    """The fields of one class of a library.

    Fields:
        read: fields from which a config of ours is made.
        must_be: fields that change what is computed, each with the only value of CLIP or SigLIP.
        harmless: fields that change no embedding: they concern training, initial weights or other
            outputs of the library, or have no effect where `must_be` holds.
    """

    read: frozenset[str]
    must_be: Mapping[str, Any]
    harmless: frozenset[str]

    @property
    def all(self) -> frozenset[str]:
        """All fields."""
        return self.read | self.must_be.keys() | self.harmless

    def check(self, section: Mapping[str, Any], name: str, closed: bool = True) -> None:
        """Raise InputError if a field has a value other than it must have, or is unknown.

        Args:
            section: section of a config.
            name: name of the section with a dot, or "".
            closed: whether the library refuses unknown fields rather than ignoring them.
        """
        for field, value in self.must_be.items():
            # An absent or null field means the library's default.
            if section.get(field, value) not in (value, None):
                raise InputError(
                    f"`{name}{field}` (={section[field]!r}) must be {value!r}; jaxdefense reads "
                    "models built like CLIP."
                )
        if closed and (unknown := sorted(section.keys() - self.all)):
            raise InputError(
                f"`{name}{unknown[0]}` is not a field of OpenCLIP's models built like CLIP."
            )


def _fields(read: str, must_be: Mapping[str, Any], harmless: str) -> Fields:
    return Fields(frozenset(read.split()), must_be, frozenset(harmless.split()))


_BLOCK: Mapping[str, Any] = {
    "ls_init_value": None,
    "final_ln_after_pool": False,
    "act_kwargs": None,
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
}
OPENCLIP_MODEL = _fields(
    "embed_dim vision_cfg text_cfg quick_gelu",
    {"init_logit_bias": None, "nonscalar_logit_scale": False, "multimodal_cfg": None},
    "custom_text init_logit_scale output_dict",
)
# Patch dropout is for pretraining: a backdoor distillation keeps every patch.
OPENCLIP_VISION = _fields(
    "layers width head_width mlp_ratio patch_size image_size norm_kwargs",
    {
        **_BLOCK,
        "timm_model_name": None,
        "attentional_pool": False,
        "no_ln_pre": False,
        "pos_embed_type": "learnable",
        "pool_type": "tok",
    },
    "patch_dropout attn_pooler_queries attn_pooler_heads output_tokens timm_model_pretrained "
    "timm_pool timm_proj timm_proj_bias timm_drop timm_drop_path",
)
# The fields of the tokenizer are read when it is loaded.
OPENCLIP_TEXT = _fields(
    "context_length vocab_size width heads layers mlp_ratio norm_kwargs pool_type eos_id "
    "hf_tokenizer_name tokenizer_mode tokenizer_kwargs",
    {
        **_BLOCK,
        "hf_model_name": None,
        "embed_cls": False,
        "no_causal_mask": False,
        "proj_bias": False,
        "proj_type": "linear",
    },
    "pad_id output_tokens hf_model_pretrained hf_proj_type hf_pooler_type",
)

# For any model of transformers: its classes have no such fields, but it reads them all the same.
_ANY: Mapping[str, Any] = {"quantization_config": None, "per_layer_config": None}
_TOWER = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads hidden_act layer_norm_eps "
)
_TEXT = _TOWER + "vocab_size max_position_embeddings "
_VISION = _TOWER + "image_size patch_size "
_ENDS = "attention_dropout pad_token_id bos_token_id "
HF_MODEL = _fields(
    "text_config vision_config projection_dim",
    _ANY,
    "initializer_factor logit_scale_init_value",
)
HF_TEXT = _fields(
    _TEXT + "projection_dim eos_token_id", _ANY, _ENDS + "initializer_range initializer_factor"
)
HF_VISION = _fields(
    _VISION + "projection_dim",
    {**_ANY, "num_channels": 3},
    "attention_dropout initializer_range initializer_factor",
)
SIGLIP_MODEL = _fields("text_config vision_config", _ANY, "initializer_factor")
SIGLIP_TEXT = _fields(_TEXT + "projection_size", _ANY, _ENDS + "eos_token_id")
SIGLIP_VISION = _fields(
    _VISION, {**_ANY, "num_channels": 3, "vision_use_head": True}, "attention_dropout"
)


def tower_fields(
    raw: Mapping[str, Any], tower: str, towers: Collection[str], twice: bool
) -> dict[str, Any]:
    """Find the fields of a tower in a `config.json`, as transformers' own classes do.

    Args:
        raw: the parsed file.
        tower: text or vision.
        towers: towers of the model; the file of a single tower may hold its fields at the top
            level, or in a section as the file of both does.
        twice: whether a second section replaces the first, as in old files of CLIP; fields that the
            second lacks have the class's defaults.

    Raises:
        InputError: a section is not a JSON object.
    """
    name = f"{tower}_config"
    if twice and len(towers) > 1 and raw.get(f"{name}_dict") is not None:
        name = f"{name}_dict"
    section = raw.get(name)
    if section is None:
        return {} if len(towers) > 1 else dict(raw)
    if not isinstance(section, dict):
        raise InputError(f"`{name}` must be a JSON object.")
    return section
