"""The NVIDIA GPUs of this machine: those that the driver lists, else those on the PCI bus."""

from pathlib import Path

PCI_DEVICES = Path("/sys/bus/pci/devices")
NVIDIA_VENDOR = "0x10de"
DISPLAY_CLASS = "0x03"  # display controllers: VGA (0x0300..) and 3D (0x0302..)


def nvidia_gpus() -> list[str]:
    """Return the GPUs, each by a name; that one is here does not mean that this process can use it.

    The driver is asked first: where Linux runs in a virtual machine of its own (WSL) or in a sandbox, a GPU
    need not be on the PCI bus. On the bus it is seen without a driver, too.
    """
    return driver_gpus() or pci_gpus()


def driver_gpus() -> list[str]:
    """Return the names of the GPUs that the driver lists; none where no driver answers."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [str(pynvml.nvmlDeviceGetName(handle)) for handle in handles]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def pci_gpus(devices: Path = PCI_DEVICES) -> list[str]:
    """Return the PCI addresses of NVIDIA display controllers, with or without a driver."""
    addresses = []
    for device in sorted(devices.glob("*")):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor == NVIDIA_VENDOR and kind.startswith(DISPLAY_CLASS):
            addresses.append(device.name)
    return addresses
