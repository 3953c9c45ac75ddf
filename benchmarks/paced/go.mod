module paced

go 1.25
