import socket

import pytest
from huggingface_hub import constants
import pytest
