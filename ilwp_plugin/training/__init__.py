"""Add inter-layer weight prediction to a training loop."""

from ilwp_plugin.training.fake_quantization import ResidualFakeQuantizer
from ilwp_plugin.training.inter_layer_loss import InterLayerLoss
from ilwp_plugin.training.loss_weight import TrainingRun, automatic_loss_weight, gradient_rms

__all__ = ["InterLayerLoss", "ResidualFakeQuantizer", "TrainingRun", "automatic_loss_weight", "gradient_rms"]
