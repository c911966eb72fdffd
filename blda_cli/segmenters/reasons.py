"""What an exception of somebody else's code says, in one line."""


def reason(error: BaseException) -> str:
    """The type of an exception and the line of its message that tells most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # TorchScript begins with a trace and ends with the type and message of what happened.
    if lines[0].startswith("The following operation failed in the TorchScript interpreter"):
        return lines[-1]
    return f"{type(error).__name__}: {lines[0]}"
