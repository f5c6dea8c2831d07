"""Text that grows while somebody speaks: on a terminal one line that is written over, elsewhere a line per change."""

import shutil


class PartialLine:
    def __init__(self, name, file):
        self.name, self.file, self.shown = name, file, ""
        self.terminal = file.isatty()

    def show(self, text):
        """The text so far; nothing happens when it is what it was."""
        if text == self.shown:
            return
        self.shown = text
        line = f"{self.name} {text} ..."
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            if len(line) > width:  # a line that wraps could not be written over: show its end
                line = "..." + line[len(line) - max(width - 3, 0) :]
            self.file.write(f"\r{line}\x1b[K")
        else:
            self.file.write(f"{line}\n")
        self.file.flush()

    def clear(self):
        """Take the line away, so that the final text can stand there."""
        if self.terminal and self.shown:
            self.file.write("\r\x1b[K")
