"""What an exception of somebody else's code says, in one line."""


def reason(error: BaseException) -> str:
    """The line of an exception's message that tells most, after its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # TorchScript and Hugging Face's hub begin with where it happened; TorchScript ends with what it was.
    line = (
        lines[-1] if lines[0].startswith("The following operation failed in the TorchScript interpreter") else lines[0]
    )
    return f"{type(error).__name__}: {line}"
