"""LeRobot policy of the type `lwd`: a policy that `lwdctl export policy` wrote.

LeRobot imports this package by its name, which registers the type.
"""

from lerobot_policy_lwd.configuration_lwd import LWDConfig
from lerobot_policy_lwd.modeling_lwd import LWDPolicy
from lerobot_policy_lwd.processor_lwd import make_lwd_pre_post_processors

__all__ = ["LWDConfig", "LWDPolicy", "make_lwd_pre_post_processors"]
