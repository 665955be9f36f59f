"""Add inter-layer weight prediction to a training loop."""

from ilwp_plugin.training.batch_norm import reestimate_batch_norms
from ilwp_plugin.training.closed_loop import ClosedLoop, WeightSource
from ilwp_plugin.training.distillation import distillation_loss
from ilwp_plugin.training.fake_quantization import ResidualFakeQuantizer
from ilwp_plugin.training.fine_tuning import FineTuned, FineTuning, fine_tune
from ilwp_plugin.training.inter_layer_loss import InterLayerLoss
from ilwp_plugin.training.loss_weight import TrainingRun, automatic_loss_weight, gradient_rms, is_trained
from ilwp_plugin.training.schedule import Schedule, SgdRun
from ilwp_plugin.training.session import Session, SessionStatistics

__all__ = [
    "ClosedLoop",
    "FineTuned",
    "FineTuning",
    "InterLayerLoss",
    "ResidualFakeQuantizer",
    "Schedule",
    "Session",
    "SessionStatistics",
    "SgdRun",
    "TrainingRun",
    "WeightSource",
    "automatic_loss_weight",
    "distillation_loss",
    "fine_tune",
    "gradient_rms",
    "is_trained",
    "reestimate_batch_norms",
]
