"""transformers: from_pretrained() builds MixLinear layers, save_pretrained() writes them as they came.

Importing this module registers the quantizer. The hooks used are those that transformers 5.17 to 5.23
have in common: a subclass of HfQuantizer that changes the model's skeleton on the meta device. Each
buffer of the skeleton has the dtype that the checkpoint's header says, which every one of these
versions then loads it in, whatever dtype the rest of the model is asked to have.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from mixllm.decoding import install as install_decoding
from mixllm.errors import MixllmError
from mixllm.experts import split_experts
from mixllm.format.config import QUANT_METHOD, QuantizedModule, parse_config
from mixllm.format.pack import shapes
from mixllm.format.shards import FLOATS, Header
from mixllm.format.validate import GUARD, validate_tensors
from mixllm.names import FUSED, in_files, in_model
from mixllm.nn import MixLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register_quantization_config(QUANT_METHOD)
class MixllmConfig(QuantizationConfigMixin):
    """quantization_config of config.json, field for field; see mixllm.format.config."""

    def __init__(self, quant_method: str = QUANT_METHOD, **fields: Any) -> None:
        vars(self)["quant_method"] = quant_method  # typed as one of transformers' own methods
        for name, value in fields.items():
            setattr(self, name, value)


@register_quantizer(QUANT_METHOD)
class MixllmQuantizer(HfQuantizer):
    """Puts a MixLinear where the checkpoint says that a linear layer was quantized."""

    requires_calibration = True

    def __init__(self, quantization_config: MixllmConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.format, self.quantized = parse_config(quantization_config.to_dict(), "config.json")

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        if checkpoint_files is None:
            raise MixllmError("from_pretrained(state_dict=...): give the checkpoint's directory instead")
        headers = validate_tensors(map(Path, checkpoint_files), self.format, self.quantized)
        split = split_experts(model, headers)
        for name, module in self.quantized.items():
            path = in_model(name, model)
            linear = _linear(model, path, module)
            model.set_submodule(path, self._skeleton(name, module, linear, headers))
            _need_no_start(model, path.rpartition(".")[0], headers)
        _check_others(model, headers)
        renamed = {name: in_files(name, headers) for name, _ in model.named_parameters()}
        self.renamed = {own: model.get_parameter(own).dtype for own, held in renamed.items() if own != held}
        ignored = model._keys_to_ignore_on_load_unexpected or ()
        # transformers joins the guards of all experts under the names of the fused weights.
        fused = (f"{path}.{name}" for path in split for name in FUSED)
        guards = (*(f"{in_model(name, model)}.{GUARD}" for name in self.quantized), *fused)
        model._keys_to_ignore_on_load_unexpected = {*ignored, *(f"^{re.escape(name)}$" for name in guards)}

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        # transformers 5.17 loads a tensor that it renames in the file's dtype, whatever was asked for.
        for name, dtype in self.renamed.items():
            parameter = model.get_parameter(name)
            parameter.data = parameter.data.to(dtype)
        # Nothing flows back through a quantized layer: whoever trains is told by autograd, and whoever leaves
        # torch.no_grad() out is not slower for it, nor stopped by torch.compile.
        model.requires_grad_(False)
        install_decoding(model)

    def _skeleton(
        self, name: str, module: QuantizedModule, linear: nn.Linear, headers: dict[str, Header]
    ) -> MixLinear:
        """A MixLinear on meta that has the dtypes of the checkpoint's tensors."""
        k, n, rows = module.in_features, module.out_features, module.rows
        bias, dtype = linear.bias is not None, linear.weight.dtype
        layer = MixLinear(k, n, rows, self.format, bias=bias, dtype=dtype, device="meta")
        for key in shapes(self.format, rows, k):
            setattr(layer, key, layer.get_buffer(key).to(headers[f"{name}.{key}"].torch_dtype))
        return layer

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, str]]:
        state = dict(model.state_dict())
        names = (in_model(name, model) for name in self.quantized)
        state |= {f"{name}.{GUARD}": torch.empty(0, dtype=torch.uint8) for name in names}
        return state, {}

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True


def _linear(model: nn.Module, name: str, module: QuantizedModule) -> nn.Linear:
    try:
        linear = model.get_submodule(name)
    except AttributeError:
        kind = type(model).__name__
        raise MixllmError(
            f"{kind} has no layer {name}; load the checkpoint as AutoModelForCausalLM"
        ) from None
    if not isinstance(linear, nn.Linear):
        raise MixllmError(f"{name}: is a {type(linear).__name__} in this model, not a linear layer")
    if (linear.in_features, linear.out_features) != (module.in_features, module.out_features):
        raise MixllmError(
            f"{name}: the model's config makes it {linear.in_features} to {linear.out_features} features, "
            f"the checkpoint {module.in_features} to {module.out_features}"
        )
    return linear


def _need_no_start(model: nn.Module, path: str, headers: dict[str, Header]) -> None:
    """Keep transformers from giving first values to what is in the module `path`, whose own code may do that
    to the weights of its linear layers (GPTBigCode's and Mamba 2's do): quantized ones have none. A module
    with tensors that the files do not hold is left to it: GPTNeo's attention makes its masks so."""
    parent = model.get_submodule(path)
    own = (*parent.named_parameters(recurse=False), *parent.named_buffers(recurse=False))
    if all(in_files(f"{path}.{name}", headers) in headers for name, _ in own):
        parent._is_hf_initialized = True  # type: ignore[assignment]  # read by transformers


def _check_others(model: nn.Module, headers: dict[str, Header]) -> None:
    # transformers 5.17 takes a tensor of any shape into a quantized model.
    for name, tensor in model.state_dict().items():
        header = headers.get(in_files(name, headers))
        if header is None:
            continue
        if header.shape != tensor.shape:
            shapes = f"{list(header.shape)}, not {list(tensor.shape)}"
            raise MixllmError(f"{header.file}: tensor {name}: its shape is {shapes}")
        if tensor.is_floating_point() and header.torch_dtype not in FLOATS:
            raise MixllmError(f"{header.file}: tensor {name}: its dtype is {header.dtype}, not a float's")
