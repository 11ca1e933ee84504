"""Networks over tokens: backbones (a mixture of transformers, a Conformer), routers, connectors and understanding encoders."""

from soundomni.experts.conformer import ConformerBackbone
from soundomni.experts.conformer_layer import ConformerExpert, ConformerLayer
from soundomni.experts.connectors.codes import CodesConnector
from soundomni.experts.connectors.fourier import FourierConnector
from soundomni.experts.connectors.linear import LinearConnector
from soundomni.experts.connectors.mlp import MLPConnector
from soundomni.experts.dense import DenseRouter
from soundomni.experts.log_mel import LogMelEncoder
from soundomni.experts.modality import ModalityRouter
from soundomni.experts.mot import MoTBackbone
from soundomni.experts.mot_layer import MoTExpert, MoTLayer
from soundomni.experts.norm import RMSNorm
from soundomni.experts.qwen2_audio import Qwen2AudioEncoder
from soundomni.experts.swiglu import SwiGLU
from soundomni.experts.top_k import TopKFeedForward, TopKRouter

__all__ = [
    "CodesConnector",
    "ConformerBackbone",
    "ConformerExpert",
    "ConformerLayer",
    "DenseRouter",
    "FourierConnector",
    "LinearConnector",
    "LogMelEncoder",
    "MLPConnector",
    "MoTBackbone",
    "MoTExpert",
    "MoTLayer",
    "ModalityRouter",
    "Qwen2AudioEncoder",
    "RMSNorm",
    "SwiGLU",
    "TopKFeedForward",
    "TopKRouter",
]
