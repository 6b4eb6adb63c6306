from .write import Exported as Exported, export_gguf as export_gguf
