"""Say why MLX has no build for this machine before pip says it in its own words."""

import platform
import sys

# What the tags of the locked mlx wheels ask for.
OLDEST_GLIBC = (2, 35)
OLDEST_MACOS = (14, 0)


def obstacle(system: str, machine: str, release: str) -> str | None:
    """Return a sentence that says what is in the way; None where MLX can be installed.

    `release` is the version of macOS, or of glibc on Linux, empty there with another C library.
    """
    if system == "Darwin" and machine != "arm64":
        return (
            f"MLX needs Apple silicon, and this Python is built for {machine}. On such a Mac, "
            "name an arm64 Python: make setup PYTHON=/path/to/python3"
        )
    if system == "Darwin" and parsed(release) < OLDEST_MACOS:
        return f"MLX needs macOS 14 or newer; this is macOS {release}."
    if system == "Linux" and not release:
        return "MLX is built for glibc, and this system has another C library (musl?)."
    if system == "Linux" and parsed(release) < OLDEST_GLIBC:
        return f"MLX needs glibc 2.35 or newer (Debian 12, Ubuntu 22.04); this is {release}."
    if system not in {"Darwin", "Linux"}:
        return f"MLX Manager runs on macOS and Linux; this is {system}."
    return None


def parsed(release: str) -> tuple[int, ...]:
    """Return the leading two numbers of a version: `2.36` is `(2, 36)`."""
    return tuple(int(part) for part in release.split(".")[:2])


def main() -> int:
    """Print the obstacle, if there is one; the exit status says whether there was."""
    system = platform.system()
    library, glibc = platform.libc_ver()
    release = platform.mac_ver()[0] if system == "Darwin" else glibc * (library == "glibc")
    sentence = obstacle(system, platform.machine(), release)
    if sentence:
        print(sentence, file=sys.stderr)
    return int(sentence is not None)


if __name__ == "__main__":
    sys.exit(main())
