package handlers

import "github.com/gin-gonic/gin"

// Routes lists the paths that the API answers.
func (a *API) Routes() gin.RoutesInfo { return a.routes.(*gin.Engine).Routes() }
