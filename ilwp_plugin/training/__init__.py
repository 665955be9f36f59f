"""Add inter-layer weight prediction to a training loop."""

from ilwp_plugin.recipes.base import TrainingPart, WeightSource
from ilwp_plugin.recipes.loss_weight import TrainingRun, automatic_loss_weight, gradient_rms, is_trained
from ilwp_plugin.training.batch_norm import reestimate_batch_norms
from ilwp_plugin.training.distillation import distillation_loss
from ilwp_plugin.training.fake_quantization import FakeQuantizer
from ilwp_plugin.training.fine_tuning import FineTuned, FineTuning, Progress, fine_tune
from ilwp_plugin.training.inter_layer_loss import InterLayerLoss
from ilwp_plugin.training.parts import Parts
from ilwp_plugin.training.scales import distill_scales, output_error
from ilwp_plugin.training.schedule import Schedule, SgdRun
from ilwp_plugin.training.session import Session, SessionStatistics

ResidualFakeQuantizer = FakeQuantizer  # its name in earlier versions

__all__ = [
    "FakeQuantizer",
    "FineTuned",
    "FineTuning",
    "InterLayerLoss",
    "Parts",
    "Progress",
    "Schedule",
    "Session",
    "SessionStatistics",
    "SgdRun",
    "TrainingPart",
    "TrainingRun",
    "WeightSource",
    "automatic_loss_weight",
    "distill_scales",
    "distillation_loss",
    "fine_tune",
    "gradient_rms",
    "is_trained",
    "output_error",
    "reestimate_batch_norms",
]
