{{- /* A release's name may have dots, and a Service's may not. */ -}}
{{- define "latchkey.name" -}}
{{- .Values.nameOverride | default .Chart.Name -}}
{{- end -}}

{{- define "latchkey.fullname" -}}
{{- $name := include "latchkey.name" . -}}
{{- $release := .Release.Name | replace "." "-" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 57 | trimSuffix "-" -}}
{{- else if contains $name $release -}}
{{- $release | trunc 57 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" $release $name | trunc 57 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "latchkey.service" -}}
{{- .Values.service.name | default (include "latchkey.fullname" .) -}}
{{- end -}}

{{- define "latchkey.serviceaccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "latchkey.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{- /* What never changes: a Deployment's selector cannot. */ -}}
{{- define "latchkey.selector" -}}
app.kubernetes.io/name: {{ include "latchkey.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "latchkey.labels" -}}
{{ include "latchkey.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "latchkey.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "latchkey.settings" -}}
{{- $more := ternary (dict "LATCHKEY_EXTAUTHZ_ADDR" ":9191") dict .Values.extAuthz.enabled -}}
{{- merge $more .Values.config | toYaml -}}
{{- end -}}

{{- /* The seconds of a duration as Go writes it: 1m30s, 500ms. */ -}}
{{- define "latchkey.seconds" -}}
{{- $sum := 0.0 -}}
{{- range regexFindAll "[0-9.]+(ms|h|m|s)" . -1 -}}
{{- $n := regexFind "^[0-9.]+" . | float64 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- $sum = addf $sum (mulf $n (get (dict "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0) $unit)) -}}
{{- end -}}
{{- $sum -}}
{{- end -}}

{{- /* What a schema cannot say: how values bound each other. */ -}}
{{- define "latchkey.validate" -}}
{{- with .Values.autoscaling -}}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) -}}
{{- fail (printf "autoscaling.minReplicas is %d and autoscaling.maxReplicas is %d: raise one or lower the other" (int .minReplicas) (int .maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- $delay := include "latchkey.seconds" (.Values.config.LATCHKEY_SHUTDOWN_DELAY | default "0s") | float64 -}}
{{- $timeout := include "latchkey.seconds" (.Values.config.LATCHKEY_SHUTDOWN_TIMEOUT | default "20s") | float64 -}}
{{- $takes := addf $delay $timeout .Values.preStopSeconds -}}
{{- if le (float64 .Values.terminationGracePeriodSeconds) $takes -}}
{{- fail (printf "terminationGracePeriodSeconds is %d, and a replica takes up to %v s to end (preStopSeconds + LATCHKEY_SHUTDOWN_DELAY + LATCHKEY_SHUTDOWN_TIMEOUT): give it more, or it is killed with requests under way" (int .Values.terminationGracePeriodSeconds) $takes) -}}
{{- end -}}
{{- end -}}

{{- /*
How many replicas to ask for while an autoscaler decides. Without the field an upgrade from a fixed
number drops to one replica. So the number that runs is kept, and a first installation begins with
minReplicas. Where no cluster is asked (helm template, Argo CD) the field is left out: the
autoscaler's number would be undone with each sync.
*/ -}}
{{- define "latchkey.replicas" -}}
{{- $v := .Values.autoscaling -}}
{{- if not $v.enabled -}}
{{- .Values.replicas -}}
{{- else -}}
{{- $running := lookup "apps/v1" "Deployment" .Release.Namespace (include "latchkey.fullname" .) -}}
{{- if $running -}}
{{- max (int $v.minReplicas) (int (dig "spec" "replicas" 0 $running)) -}}
{{- else if lookup "v1" "ServiceAccount" .Release.Namespace "default" -}}
{{- $v.minReplicas -}}
{{- end -}}
{{- end -}}
{{- end -}}
