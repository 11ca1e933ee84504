"""Networks over tokens: backbones (a mixture of transformers, a Conformer), routers, connectors and understanding encoders."""

from soundomni.experts.byte_text import BytesEncoder
from soundomni.experts.clap_audio import ClapAudioEncoder
from soundomni.experts.clap_text import ClapTextEncoder
from soundomni.experts.conformer import ConformerBackbone
from soundomni.experts.conformer_layer import ConformerExpert, ConformerLayer
from soundomni.experts.connectors.codes import CodesConnector
from soundomni.experts.connectors.depth_codes import DepthCodesConnector
from soundomni.experts.connectors.fourier import FourierConnector
from soundomni.experts.connectors.linear import LinearConnector
from soundomni.experts.connectors.mlp import MLPConnector
from soundomni.experts.dense import DenseRouter
from soundomni.experts.integer import IntegerEncoder
from soundomni.experts.log_mel import LogMelEncoder
from soundomni.experts.lookup import LookupEncoder
from soundomni.experts.modality import ModalityRouter
from soundomni.experts.mot import MoTBackbone
from soundomni.experts.mot_layer import MoTExpert, MoTLayer
from soundomni.experts.norm import RMSNorm
from soundomni.experts.number import NumberEncoder
from soundomni.experts.qwen2_audio import Qwen2AudioEncoder
from soundomni.experts.swiglu import SwiGLU
from soundomni.experts.t5 import T5Encoder
from soundomni.experts.t5gemma import T5GemmaEncoder
from soundomni.experts.top_k import TopKFeedForward, TopKRouter

__all__ = [
    "BytesEncoder",
    "ClapAudioEncoder",
    "ClapTextEncoder",
    "CodesConnector",
    "ConformerBackbone",
    "ConformerExpert",
    "ConformerLayer",
    "DenseRouter",
    "DepthCodesConnector",
    "FourierConnector",
    "IntegerEncoder",
    "LinearConnector",
    "LogMelEncoder",
    "LookupEncoder",
    "MLPConnector",
    "MoTBackbone",
    "MoTExpert",
    "MoTLayer",
    "ModalityRouter",
    "NumberEncoder",
    "Qwen2AudioEncoder",
    "RMSNorm",
    "SwiGLU",
    "T5Encoder",
    "T5GemmaEncoder",
    "TopKFeedForward",
    "TopKRouter",
]
