"""What several ranks agree on is in tests/distributed/test_resume.py."""

from accelerate import Accelerator

from trainer.engines.agreement import first_message


def test_one_process_agrees_with_itself(forget_accelerate):
    forget_accelerate()
    accelerator = Accelerator(cpu=True)
    assert first_message(accelerator, None) is None
    assert first_message(accelerator, "full") == "full"
