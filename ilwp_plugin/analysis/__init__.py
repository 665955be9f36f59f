"""What the paper's figures show, for any model: numbers first (`references`, `distributions`), then pictures."""

from ilwp_plugin.analysis.distributions import Distribution, distributions
from ilwp_plugin.analysis.references import ReferenceShares, reference_shares
from ilwp_plugin.analysis.report import analysis_of, analyze

__all__ = ["Distribution", "ReferenceShares", "analysis_of", "analyze", "distributions", "reference_shares"]
