"""Objectives and samplers: from data to noise in training, from noise to data in generation."""

from soundomni.core.inference.guidance import PartialTarget, guided
from soundomni.flow.autoregressive import Autoregressive
from soundomni.flow.autoregressive_runs import AutoregressiveRuns
from soundomni.flow.ddim import DDIMSampler
from soundomni.flow.ddim_cfgpp import DDIMCFGppSampler
from soundomni.flow.dpmpp import DPMppSampler
from soundomni.flow.dpmpp_2m import DPMpp2MSampler
from soundomni.flow.dpmpp_2m_sde import DPMpp2MSDESampler
from soundomni.flow.dpmpp_3m_sde import DPMpp3MSDESampler
from soundomni.flow.euler import EulerSampler
from soundomni.flow.flow_matching import FlowMatching
from soundomni.flow.heun import HeunSampler
from soundomni.flow.masked import Masked
from soundomni.flow.masked_critic import MaskedCritic, TokenCritic
from soundomni.flow.maskgit import MaskGITSampler
from soundomni.flow.maskgit_critic import MaskGITCriticSampler
from soundomni.flow.midpoint import MidpointSampler
from soundomni.flow.next_token import NextTokenSampler
from soundomni.flow.noise_schedules import NoiseSchedule
from soundomni.flow.one_step import OneStepSampler
from soundomni.flow.pingpong import PingPongSampler
from soundomni.flow.prompt_lookup import PromptLookup
from soundomni.flow.rk4 import RK4Sampler
from soundomni.flow.speculative import SpeculativeSampler
from soundomni.flow.timestep_schedule import sampling_timesteps, shift_timestep
from soundomni.flow.x_prediction import XPrediction

__all__ = [
    "Autoregressive",
    "AutoregressiveRuns",
    "DDIMCFGppSampler",
    "DDIMSampler",
    "DPMpp2MSDESampler",
    "DPMpp2MSampler",
    "DPMpp3MSDESampler",
    "DPMppSampler",
    "EulerSampler",
    "FlowMatching",
    "HeunSampler",
    "MaskGITCriticSampler",
    "MaskGITSampler",
    "Masked",
    "MaskedCritic",
    "MidpointSampler",
    "NextTokenSampler",
    "NoiseSchedule",
    "OneStepSampler",
    "PartialTarget",
    "PingPongSampler",
    "PromptLookup",
    "RK4Sampler",
    "SpeculativeSampler",
    "TokenCritic",
    "XPrediction",
    "guided",
    "sampling_timesteps",
    "shift_timestep",
]
