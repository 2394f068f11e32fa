"""Losses of teams of agents."""

from rlobj.multiagent.qmixer import QMixerLoss

__all__ = ["QMixerLoss"]
