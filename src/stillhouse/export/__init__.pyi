from .write import ExportedFile as ExportedFile, export_gguf as export_gguf
